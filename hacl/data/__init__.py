"""Records, images, templates, packing and collation: everything between a file on disk and a batch of tensors."""
