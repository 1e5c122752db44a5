"""The bundled tiny model: its digit-scene world, its data sets and its pretraining (`minigpt4 tiny ...`)."""
