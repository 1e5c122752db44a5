"""Records of own data: files of them, the formats that they come in, and the pictures that they name."""
