"""The version of all three packages, which are one distribution."""

VERSION = "0.1.0"
