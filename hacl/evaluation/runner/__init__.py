"""Ask a model the questions of a benchmark and keep every reply: plan, prompts, batches, resumable files, scores."""
