"""The networks beside a run's own, each in a folder of its workdir: the classifier and the autoencoder."""
