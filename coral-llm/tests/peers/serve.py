"""Serves a model file by llama-server on a free port of the loopback interface, and prints its address.

It ends when its standard input does, so that no server outlives the test that started it.

usage: serve.py FILE
"""

import os
import sys

import xllamacpp

# The server names its model by the path: no answer should say where the file lies.
directory, file = os.path.split(sys.argv[1])
os.chdir(directory)
params = xllamacpp.CommonParams()
params.model.path = file
params.hostnames = ["127.0.0.1"]
params.port = 0
params.n_ctx = 4096
params.n_parallel = 1
params.use_jinja = True
params.warmup = False
params.cpuparams.n_threads = 1
params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print("listening", server.listening_address, flush=True)
sys.stdin.read()
