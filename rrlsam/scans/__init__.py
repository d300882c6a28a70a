"""What lies in a data set's raw folder, read and checked; written never."""
