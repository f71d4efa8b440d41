"""2D networks overfitted to the annotated slices of one study, which then label every slice.

The yardstick of the literature on few annotated slices: a U-Net, DeepLabV3+ or MAnet learns from the slices of one scan
alone. It does so in a child process, since segmentation-models-pytorch imports torchvision, which does not load beside
every build of torch.

References:
    Payer et al., Journal of Medical Imaging 10(4):044007, 2023, doi:10.1117/1.JMI.10.4.044007.
"""

from sliceprop.engine.predictors.prediction import predict

__all__ = ["predict"]
