"""What is used of reasoning-gym, in a few lines: one data set, whose scorer can be watched."""

from reasoning_gym.factory import DATASETS as DATASETS
from reasoning_gym.factory import create_dataset as create_dataset
