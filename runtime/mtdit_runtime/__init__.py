"""The robot side: a bundle in, joint positions out, on time. numpy only; engines and tokenizer load
where used.
"""
