//! Text to token shards to batches: tokenizers, corpora, shards, packing, collation, order.
