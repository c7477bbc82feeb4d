"""What each training preset changes beneath a YAML file: learning rate per module, losses, LoRA.

Sources: HACL (Jiang et al., CVPR 2024) sections 3.3 and 4.1 for the two stages; LLaVA-1.5 (Liu et al., 2023) table 9
for the learning rates 1e-3 (projector alone) and 2e-5 (LLM), and its released LoRA recipe (rank 128, alpha 256, 2e-4).
"""

PRESETS: dict[str, dict] = {
    # Interface only: frozen vision tower and LLM, generation + contrastive.
    "stage1": {
        "model": {"learning_rate": {"vision": 0.0, "projector": 1e-3, "llm": 0.0, "heads": 1e-3}},
        "data": {"template": "plain"},
    },
    # Ablation of the paper: the vision tower learns too.
    "stage1-vision": {
        "model": {"learning_rate": {"vision": 2e-6, "projector": 1e-3, "llm": 0.0, "heads": 1e-3}},
        "data": {"template": "plain"},
    },
    # Ablation of the paper: training the LLM in stage 1 makes the result worse.
    "stage1-llm": {
        "model": {"learning_rate": {"vision": 0.0, "projector": 1e-3, "llm": 2e-5, "heads": 1e-3}},
        "data": {"template": "plain"},
    },
    # Instruction tuning of projector and LLM; the paper uses no contrastive loss here.
    "stage2": {
        "model": {"learning_rate": {"vision": 0.0, "projector": 2e-5, "llm": 2e-5, "heads": 0.0}},
        "data": {"template": "chat"},
        "objective": {"contrastive_weight": 0.0, "num_hallucinated": 0},
    },
    "stage2-lora": {
        "model": {
            "learning_rate": {"vision": 0.0, "projector": 2e-5, "llm": 2e-4, "heads": 0.0},
            "lora": {"rank": 128, "alpha": 256.0, "dropout": 0.05},
        },
        "data": {"template": "chat"},
        "objective": {"contrastive_weight": 0.0, "num_hallucinated": 0},
    },
    # Both losses on an already instruction-tuned checkpoint; only the projector moves unless the YAML says more.
    "posthoc": {
        "model": {"learning_rate": {"vision": 0.0, "projector": 2e-5, "llm": 0.0, "heads": 1e-3}},
        "data": {"template": "chat", "prompt": "Describe the image."},
    },
}
