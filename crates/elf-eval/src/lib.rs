//! Metrics of generated text: BLEU, ROUGE, perplexity, entropy, diversity.
