"""Device files: what ships can be read, and what is wrong is said in one line."""

import pytest

from hspec_lab import device

PEAK = '[peaks.fp16]\nvalue = 100\nunit = "TFLOP/s"\nsource = "a datasheet"\n'
GPU = 'title = "A GPU"\nkind = "gpu"\narchitecture = "9.0"\n'
WANTED = (
    "a100-40gb",
    "a100-80gb",
    "h100",
    "h200",
    "b200",
    "l40s",
    "rtx-3090",
    "rtx-4090",
    "rtx-5090",
    "epyc-zen5-2-cores",
)


def entry(key, value=1, unit="GB/s", source="a datasheet"):
    return f'[{key}]\nvalue = {value}\nunit = "{unit}"\nsource = "{source}"\n'


def written(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", WANTED)
def test_every_device_that_ships_can_be_read_and_names_a_source_for_each_number(name):
    found = device.load(name)
    assert found.title and found.bytes_per_s > 1e9 and found.memory_bytes > 1e9
    numbers = [*found.numbers.values(), *found.peaks.values()]
    assert len(numbers) >= 6 and all(len(number.source) > 4 for number in numbers)
    assert not any("placeholder" in number.source for number in numbers)


def test_known_lists_exactly_what_ships():
    assert set(device.known()) == set(WANTED)


@pytest.mark.parametrize("name", [name for name in WANTED if "epyc" not in name])
def test_peaks_of_gpus_are_dense_and_rise_as_bits_fall(name):
    found = device.load(name)
    assert found.peak("fp32") < found.peak("fp16") < found.peak("int8")
    # eight-bit products run at two or, where 16-bit ones are held back, four times their rate
    assert found.peak("int8") / found.peak("fp16") == pytest.approx(2, rel=0.03) or found.peak(
        "int8"
    ) / found.peak("fp16") == pytest.approx(4, rel=0.03)


def test_numbers_come_in_base_units(tmp_path):
    text = GPU + entry("bandwidth", 2, "TB/s") + entry("memory", 3, "GiB") + PEAK
    text += entry("processors", 10, "multiprocessors") + entry("clock", 500, "MHz")
    found = device.load(written(tmp_path, text))
    assert (found.bytes_per_s, found.memory_bytes) == (2e12, 3 * 2**30)
    assert found.peak("fp16") == 1e14
    # ten multiprocessors issue four instructions a cycle, each for 32 threads
    assert found.issued_per_s == 10 * 4 * 32 * 500e6
    assert found.numbers["bandwidth"].source == "a datasheet"


def test_an_unknown_device_lists_those_that_are_known():
    with pytest.raises(ValueError, match="no device 'b300'; known: a100-40gb, a100-80gb"):
        device.load("b300")


def test_a_missing_peak_names_the_file_and_the_key(tmp_path):
    found = device.load(written(tmp_path, GPU + PEAK))
    with pytest.raises(ValueError, match=r"mine.toml: no peaks.fp8, which is needed; it has fp16"):
        found.peak("fp8")
    with pytest.raises(ValueError, match=r"mine.toml: no bandwidth, which is needed"):
        _ = found.bytes_per_s
    with pytest.raises(ValueError, match=r"mine.toml: no processors"):
        _ = found.issued_per_s


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("title = ", "cannot be read as TOML"),
        ('kind = "gpu"\n', "title must be a device's name, got None"),
        ('title = "A"\nkind = "tpu"\n', "kind must be one of gpu, cpu, got 'tpu'"),
        ('title = "A"\nkind = "gpu"\n', "architecture must be like '9.0'"),
        (GPU + "peaks = 3\n", "peaks must be tables"),
        (GPU + entry("memorie"), "unknown memorie; known: bandwidth, memory"),
        (GPU + entry("peaks.fp64", 1, "TFLOP/s"), "unknown peaks.fp64; known: fp32"),
        (GPU + "[memory]\nvalue = 3\n", "memory must be a table with value, unit and source"),
        (GPU + entry("memory", -1, "GB"), "memory.value must be a number above 0, got -1"),
        (GPU + entry("memory", '"1"', "GB"), "memory.value must be a number above 0"),
        (GPU + entry("memory", "nan", "GB"), "memory.value must be a number above 0"),
        (GPU + entry("memory", 1, "GB/s"), "memory.unit must be GB or GiB, got 'GB/s'"),
        (GPU + entry("memory", 1, "GB", " "), "memory.source must say where"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_with_its_name(tmp_path, text, told):
    with pytest.raises(ValueError, match=told) as problem:
        device.load(written(tmp_path, text))
    assert "mine.toml" in str(problem.value) and "\n" not in str(problem.value).partition("(")[0]
