"""Serves a .gguf file by llama.cpp's own server, until standard input ends."""

import sys

import xllamacpp

parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.port = int(sys.argv[2])
parameters.n_ctx = 1024
parameters.n_parallel = 1
parameters.cpuparams.n_threads = 1  # more would spin, and starve what asks
parameters.warmup = False
server = xllamacpp.Server(parameters)
sys.stdin.read()
