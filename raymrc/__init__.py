"""raymrc: fine-tune a language model, or freeze a large one and train soft prompts?"""

__version__ = "0.1.0"
