"""Adapters in files: directories of PEFT and GGUF files of llama.cpp, read and written. Knows no architecture."""
