"""Write the vectors anew: python tests/vectors/content_digest/make.py (from the repository)."""

import hashlib
import json
import sys
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.tag import Tag

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from bridge.report.content import canonical_stream  # noqa: E402
from bridge.report.errors import ContentError  # noqa: E402


def text():
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    ds.SOPInstanceUID = "2.25.1"
    ds.ImageType = ["DERIVED", "SECONDARY", "AI"]
    ds.InstanceCreationDate = "20261124"
    ds.InstanceCreationTime = "100000.250000"
    ds.ContentCreatorName = "Müller^Jürgen=山田^太郎"
    ds.ImageComments = "two words, trailing spaces   "
    ds.PixelSpacing = [0.5, 0.25]
    ds.InstanceNumber = 1
    ds.Laterality = ""
    ds.ContentDescription = None
    return "text, empty values, a name in two scripts", ds


def numbers():
    ds = Dataset()
    ds.Rows = 512
    ds.PixelRepresentation = 1
    ds.SmallestImagePixelValue = -2
    ds["SmallestImagePixelValue"].VR = "SS"
    ds.SimpleFrameList = [1, 65536]
    ds.TagAngleSecondAxis = -3
    ds.RecommendedDisplayCIELabValue = [65535, 0, 32896]
    ds.GraphicData = [0.5, 1.5, -2.0]
    ds.FloatingPointValue = 0.1
    ds.FrameIncrementPointer = Tag(0x0018, 0x1063)
    return "numbers, tags, and a VR that the dictionary leaves open", ds


def nested():
    ds = Dataset()
    ds.SOPInstanceUID = "2.25.1"
    item, empty = Dataset(), Dataset()
    item.CodeValue, item.CodingSchemeDesignator = "118565006", "SCT"
    item.CodeMeaning = "Volume"
    inner = Dataset()
    inner.PatientName = "Inside^Sequence"
    item.ConceptNameCodeSequence = [inner]
    ds.ContentSequence = [item, empty]
    ds.ConceptCodeSequence = []
    return "items, an empty item, an empty sequence; nested names are not coercible", ds


def _image(rows, columns, samples, bits, data):
    ds = Dataset()
    ds.SamplesPerPixel = samples
    ds.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    ds.Rows, ds.Columns = rows, columns
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit, ds.PixelRepresentation = bits - 1, 0
    ds.PixelData = data
    ds["PixelData"].VR = "OW" if bits > 8 else "OB"
    return ds


def bits():
    ds = _image(3, 3, 1, 1, bytes([0b10101010, 0b01010101, 0b00000011]))
    ds.NumberOfFrames = 2
    return "two frames of nine single-bit pixels: packed without a gap, one byte of padding", ds


def words():
    return "16-bit pixels", _image(1, 2, 1, 16, bytes([1, 2, 3, 4]))


def colour():
    ds = _image(1, 3, 3, 8, bytes(range(9)))
    ds.PlanarConfiguration = 0
    return "colour by pixel, odd length", ds


def planes():
    ds = _image(1, 3, 3, 8, bytes([0, 3, 6, 1, 4, 7, 2, 5, 8]))
    ds.PlanarConfiguration = 1
    return "colour by plane: the same stream as colour by pixel", ds


def coercible():
    ds = Dataset()
    ds.add_new(0x00080000, "UL", 100)
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPInstanceUID = "2.25.1"
    ds.AccessionNumber, ds.ReferringPhysicianName = "A-1", "Doctor^Refer"
    ds.StudyDescription, ds.SeriesDescription = "Chest", "AI"
    ds.PatientName, ds.PatientID, ds.IssuerOfPatientID = "Doe^Jane", "P-1", "GH"
    ds.PatientBirthDate, ds.PatientSex = "19660101", "F"
    ds.add_new(0x00990010, "LO", "RADSEAL RECEIPT")
    ds.add_new(0x00991001, "OB", bytes(32))
    ds.add_new(0x00991002, "OB", bytes(32))
    ds.add_new(0xFFFCFFFC, "OB", bytes(4))
    return "what is left out: only SOPInstanceUID stays", ds


def private():
    ds = Dataset()
    ds.SOPInstanceUID = "2.25.1"
    ds.add_new(0x00110010, "LO", "SOMEBODY")
    ds.add_new(0x00111001, "LO", "added later")
    return "a private element that radseal did not write", ds


def foreign_block():
    ds = Dataset()
    ds.SOPInstanceUID = "2.25.1"
    ds.add_new(0x00990010, "LO", "SOMEBODY ELSE")
    ds.add_new(0x00991001, "OB", bytes(32))
    return "group 0099 of another creator", ds


def nested_block():
    item, ds = Dataset(), Dataset()
    item.add_new(0x00990010, "LO", "RADSEAL RECEIPT")
    ds.ContentSequence = [item]
    return "a receipt block inside a sequence", ds


def unknown():
    ds = Dataset()
    ds.SOPInstanceUID = "2.25.1"
    ds.add_new(0x00080777, "UN", b"later!")
    return "a tag outside the dictionary", ds


def short_pixels():
    return "fewer pixels than the image has", _image(4, 4, 1, 8, bytes(8))


if __name__ == "__main__":
    for make in (
        text, numbers, nested, bits, words, colour, planes, coercible, private, foreign_block,
        nested_block, unknown, short_pixels,
    ):
        why, dataset = make()
        vector = {"why": why, "dataset": dataset.to_json_dict()}
        try:
            stream = b"".join(canonical_stream(dataset))
            vector |= {"stream": stream.hex(), "sha256": hashlib.sha256(stream).hexdigest()}
        except ContentError:
            vector["refused"] = True
        target = HERE / f"{make.__name__}.json"
        target.write_text(json.dumps(vector, indent=1, ensure_ascii=False) + "\n", "utf-8")
