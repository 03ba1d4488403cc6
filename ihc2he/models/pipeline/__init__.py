"""The pipeline: IHC to H&E to nuclei."""
