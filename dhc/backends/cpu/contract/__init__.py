"""Contractions (matmul, convolutions) as explicit-vector LLVM IR: generators from plain specs, no graph in sight."""
