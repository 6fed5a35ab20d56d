"""Load an exported folder with transformers alone, and continue a prompt.

Usage: python launch/try_export.py FOLDER [PROMPT]
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()
folder = sys.argv[1]
prompt = sys.argv[2] if len(sys.argv) > 2 else "import os\nimport sys\n\nclass "

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer(prompt, return_tensors="pt")
torch.manual_seed(0)
output = model.generate(**inputs, max_new_tokens=60, do_sample=True, temperature=0.7)
print(
    f"{type(model).__name__}, {model.num_parameters():,} parameters, loaded by transformers from {folder}. It writes:\n"
)
print(tokenizer.decode(output[0], skip_special_tokens=True))
