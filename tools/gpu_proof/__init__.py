"""What only a machine with a CUDA GPU can prove: parity, gradients and generation of every family, speed and memory.

    make gpu-proof                        # at most 8 minutes; run it again to go on where it stopped
    make gpu-proof PYTHON=python3         # without uv, on a machine without a network

It needs one GPU, and the packages of the project. `docs/gpu.json` holds what was found, and `make docs` makes
`docs/gpu.md` of it.
"""
