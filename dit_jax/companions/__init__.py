"""The networks that accompany a run's DiT, each in a folder of its workdir: the classifier and the autoencoder."""
