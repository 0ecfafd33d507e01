"""What a trained network is worth: decoded answers, scores, latency, interventions, probes.

Never changes a parameter.
decode.py answers questions; run_scores.py evaluates a run.
"""
