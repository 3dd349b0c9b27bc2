"""What a command line offers by name: kept apart from what is named, for help must not wait for torch."""

__all__ = ["DATASETS", "MODELS"]

DATASETS = ("photos", "cifar10")
MODELS = ("paper", "resnet18", "resnet20", "resnet50")
