"""A trained adapter -> what llama.cpp and Ollama serve, and the proof that it is the same thing."""
