"""The networks: light encoders, decoders, the frozen teacher."""
