"""Installation of rim_jax; see README.md."""

import pathlib

import setuptools

here = pathlib.Path(__file__).parent
version = next(line.split("'")[1] for line in (here / 'rim_jax/__init__.py').read_text().split('\n')
               if line.startswith('__version__'))

setuptools.setup(
    name='rim_jax',
    version=version,
    description='Reasoning in Memory: language models that reason inside memory blocks, in JAX',
    long_description=(here / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['rim_jax', 'rim_jax.*']),
    package_data={'rim_jax': ['**/*.j2']},
    install_requires=[
        'absl-py',
        'etils[epath]',
        'flax>=0.12.8',
        'gguf>=0.17',  # 120 kB; what it needs is here already
        'grain>=0.2.18',
        'huggingface_hub',  # tokenizers brings it
        'importlib_resources',  # tensorflow-datasets imports it without declaring it
        'jax>=0.10.2',
        'jinja2',
        'matplotlib',
        'ml-collections',
        'numpy',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12.8,<1',
        'rich',
        'safetensors',
        'scipy',
        'tensorboardX',
        'tensorflow-datasets>=4.9.10',  # without TensorFlow
        'array_record',
        'tokenizers',
    ],
    extras_require={
        'tpu': ['jax[tpu]'],
        'cuda': ['jax[cuda13]'],
        # compiles for GPUs that are not here; with --no-deps 132 MB: no driver, no CUDA libraries
        'plan-gpu': ['jax-cuda13-pjrt', 'jax-cuda13-plugin'],
        'wandb': ['wandb'],
        'gcs': ['gcsfs'],  # a WORKDIR in a bucket
        # references for tests, --verify and bench
        'hf': ['torch', 'transformers', 'peft'],
        'lm-eval': ['lm-eval[hf]>=0.4.13'],  # scores an export by the task beside it
        # llama.cpp as a wheel, and what its converter reads tokenizers with
        'llama-cpp': ['xllamacpp', 'sentencepiece'],
        'analysis': ['scikit-learn'],  # probes of --mode=controls
        'docs': ['sphinx>=8', 'myst-parser>=4', 'furo'],
        'test': ['pytest', 'pytest-xdist', 'ruff', 'pyright', 'gcsfs', 'wandb',
                 'scikit-learn', 'hypothesis'],
    },
)
