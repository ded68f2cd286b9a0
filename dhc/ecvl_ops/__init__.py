"""Image operations in the op registry, and reading and writing of images and volumes."""
