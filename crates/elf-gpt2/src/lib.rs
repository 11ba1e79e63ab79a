//! GPT-2: the judge of generative perplexity and the autoregressive baseline.
