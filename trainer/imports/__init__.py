"""Getting SAEs in: folders of SAELens and dictionary_learning become runs."""
