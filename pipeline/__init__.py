"""The method: masks, SAM, distillation, refinement, stores, data and models. Knows nothing of Ray."""
