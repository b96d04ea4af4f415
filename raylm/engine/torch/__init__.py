"""The engine that runs whatever transformers can: decoders, encoder-decoders and encoders."""
