"""Modules that some families need and megatron-core lacks, each chosen by a provider field."""
