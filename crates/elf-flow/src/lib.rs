//! The flow from noise to clean latents: path, time laws, fields, objectives, samplers.
