"""From text to packed token shards: list, read, clean, deduplicate, split, tokenise, pack."""
