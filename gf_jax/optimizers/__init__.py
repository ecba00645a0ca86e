"""What is one step of an optimiser, and how is its time counted?"""
