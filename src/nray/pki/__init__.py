"""TLS between server and node: contexts, the stream, the verification of peers, keys, and a
small authority. How it is done, and why, was found by running it; see docs of each module.

Nothing is imported here: `cryptography`, pyOpenSSL and trio are loaded by the module that
needs them.
"""
