"""Adapters: where foreign shapes stop. Pipelines of diffusers, samplers of k-diffusion, nodes, checkpoints.

One module per neighbour; everything behind them is a Denoiser, a Solver and a Grid.
"""
