"""What a user would write instead of Triton: FastAPI around an encoder and FAISS, under the same load."""
