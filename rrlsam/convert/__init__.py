"""Other people's data sets into nnU-Net's raw layout."""
