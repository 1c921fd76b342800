"""Names and colours of label values, in the header's extension of a NIfTI mask.

In the XML of Caret, as TotalSegmentator writes and reads it. Its own extension code would be 30, of
which nibabel 5.3 and later give no content (`findings/nibabel_caret_extension.sh`).
"""

from collections.abc import Mapping
from typing import Final
from xml.etree import ElementTree

from nibabel import nifti1

from kdnet_jax.core import colours

_ANY_READER: Final = 0


def extension(names: Mapping[int, str]) -> nifti1.Nifti1Extension:
    """Returns the extension that names label values; each gets a colour by its place.

    Args:
        names: label value -> name, without the background.
    """
    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    for place, (value, name) in enumerate(names.items()):
        colour = colours.at(place)
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        red, green, blue = (f"{part:.6g}" for part in parts)
        about = {"Key": str(value), "Red": red, "Green": green, "Blue": blue, "Alpha": "1"}
        ElementTree.SubElement(table, "Label", about).text = name
    ElementTree.SubElement(volume, "StudyMetaDataLinkSet")
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    text = ElementTree.tostring(root, "utf-8", xml_declaration=True)
    return nifti1.Nifti1Extension(_ANY_READER, text)


def read(header: nifti1.Nifti1Header) -> dict[int, tuple[str, str]]:
    """Returns label value -> name and colour (#RRGGBB), of a mask with just this extension."""
    (about,) = header.extensions
    labels = ElementTree.fromstring(about.get_content()).iter("Label")
    return {int(label.attrib["Key"]): (label.text or "", _colour(label)) for label in labels}


def _colour(label: ElementTree.Element) -> str:
    parts = (round(255 * float(label.attrib[key])) for key in ("Red", "Green", "Blue"))
    return "#" + "".join(f"{part:02X}" for part in parts)
