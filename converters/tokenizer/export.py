"""stub"""


def save_files(*a):
    raise NotImplementedError


def gguf_metadata(*a):
    raise NotImplementedError


def save_settings(*a):
    raise NotImplementedError


def spm_metadata(*a, **k):
    raise NotImplementedError
