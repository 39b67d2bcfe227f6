from setuptools import setup

setup(cffi_modules=["ipcqueue/_build.py:ffibuilder"])
