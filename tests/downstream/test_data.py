"""How the splits of a task are read, and what is said of a file that is wrong: always the file and the line."""

from itertools import islice, product

import datasets
import pytest

from cmgems.downstream.data import join_kmers, read_task
from cmgems.errors import UserError


def rows(split):
    return list(zip(split.sequences, split.labels.tolist(), strict=True))


def test_the_three_splits_are_read_in_order(make_task, write, toy_files):
    data = read_task(make_task(), write(toy_files))
    assert rows(data.train) == [("ACGT", 0), ("CCGT", 1), ("GGGT", 1)]
    assert rows(data.dev) == [("ACGA", 0)]
    assert rows(data.test) == [("ACGC", 0), ("TTTT", 1)]
    assert data.train.source.endswith("data/toy/train.csv")
    assert list(data.splits) == ["train", "dev", "test"]
    assert data.resplit is False


def test_classes_without_a_row_are_counted_too(make_task, write, toy_files):
    data = read_task(make_task(classes=["a", "b", "c"]), write(toy_files))
    assert data.train.class_counts(3) == [1, 2, 0]


@pytest.mark.parametrize(
    "text",
    [
        "sequence,label\nACGTAC,0\nCCGTAC,1\n",
        "sequence,label\r\nACGTAC,0\r\nCCGTAC,1\r\n",
        "\ufeffsequence,label\nACGTAC,0\nCCGTAC,1",
        '"sequence","label"\n"ACGTAC","0"\n"CCGTAC",1\n',
        "label,name,sequence\n0,first,ACGTAC\n 1 ,second,CCGTAC\n",
        "sequence,label\n\nacgtac,0\n\ncCGuAC,1\n\n",
        "sequence\tlabel\nACGTAC\t0\nCCGTAC\t1\n",
        '"sequence"\t"label"\n"ACG CGT GTA TAC"\t0\n"CCGT CGTA GTAC"\t1\n',
        "sequence\tlabel\n ACGTAC \t0\nCCGTAC\t1\n",
    ],
    ids=["csv", "crlf", "bom", "quotes", "other-columns", "blank-lines", "tsv", "k-mers", "spaces"],
)
def test_layouts(make_task, write, toy_files, text):
    data = read_task(make_task(), write(toy_files | {"toy/train.csv": text}))
    assert rows(data.train) == [("ACGTAC", 0), ("CCGTAC", 1)]


def test_iupac_codes_become_n_and_are_counted(make_task, write, toy_files):
    text = "sequence,label\nACNNGT,0\nARyGTn,1\n"
    data = read_task(make_task(), write(toy_files | {"toy/train.csv": text}))
    assert data.train.sequences == ["ACNNGT", "ANNGTN"]
    assert data.train.ambiguous == [0, 2]
    assert data.test.ambiguous == [0, 0]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "the file is empty"),
        ("sequence,class\nACGT,0\n", 1, "no column `label`; the columns are: sequence, class"),
        ("ACGT,0\nACGT,1\n", 1, "no column `sequence`; the columns are: ACGT, 0"),
        ("sequence,label\nACGT,0\nACGT,2\n", 3, r"the label is 2, but the task has 2 classes: 0\.\.1"),
        ("sequence,label\nACGT,-1\n", 2, r"the label is '-1'; it must be a number in 0\.\.1"),
        ("sequence,label\nACGT,1.0\n", 2, "the label is '1.0'"),
        ("sequence,label\nACGT,yes\n", 2, "the label is 'yes'"),
        ("sequence,label\nACGT,\n", 2, "the label is ''"),
        ("sequence,label\nACGT,²\n", 2, r"the label is '\\xb2'"),
        ("sequence,label\nACGT,0\nACGT\n", 3, "1 cells, but the header has 2"),
        ("sequence,label\nACGT,0,1\n", 2, "3 cells, but the header has 2"),
        ("sequence,label\nACGT,0\n\nACJT,0\n", 4, r"'J' \(character 3\) is not a nucleotide or an IUPAC code"),
        ("sequence,label\nAC-T,0\n", 2, r"'-' \(character 3\)"),
        ("sequence,label\nACßT,0\n", 2, r"'\\xdf' \(character 3\)"),
        ("sequence,label\n,0\n", 2, "there is no sequence"),
        ('sequence,label\n"ACG\nCGT",0\n\nACXT,7\n', 5, "the label is 7"),
        ('sequence,label\nACGT,0\n"ACGT,0\nACGT,0\n', 3, "this row cannot be read"),
        ("sequence\tlabel\nACG CGT GTA\t0\nACG CGT TTA\t0\n", 3, "words 2 and 3 are CGT and TTA"),
        ("sequence\tlabel\nACG CGT GT\t0\n", 2, "words 2 and 3 are CGT and GT, but neighbouring 3-mers share 2 bases"),
    ],
)
def test_what_is_wrong_is_said_with_the_line(make_task, write, toy_files, text, line, message):
    with pytest.raises(UserError, match=rf"data/toy/train\.csv, line {line}: .*{message}"):
        read_task(make_task(), write(toy_files | {"toy/train.csv": text}))


def test_a_split_without_rows(make_task, write, toy_files):
    with pytest.raises(UserError, match=r"toy/dev\.csv: there are no rows in it"):
        read_task(make_task(), write(toy_files | {"toy/dev.csv": "sequence,label\n"}))


def test_a_file_that_is_no_text(make_task, write, toy_files):
    data = write(toy_files)
    (data / "toy" / "train.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"toy/train\.csv: text in UTF-16; save it as UTF-8"):
        read_task(make_task(), data)


@pytest.mark.parametrize("name", ["train", "dev", "test"])
def test_a_split_that_is_absent(make_task, write, toy_files, name):
    del toy_files[f"toy/{name}.csv"]
    with pytest.raises(UserError, match=rf"data/toy: task toy has no {name} split here \({name}\.csv or {name}\.tsv\)"):
        read_task(make_task(), write(toy_files))


def test_a_folder_that_is_absent(make_task, write, toy_files):
    with pytest.raises(UserError, match=r"data: there is no folder other in it, where task toy has its data"):
        read_task(make_task(folder="other"), write(toy_files))
    with pytest.raises(UserError, match="/nowhere: there is no such folder"):
        read_task(make_task(), "/nowhere")


def test_files_are_found_by_the_names_the_task_gives(make_task, write):
    data = write(
        {
            "family/10/train_10.tsv": "sequence\tlabel\nAC CG\t0\n",
            "family/test.tsv": "sequence\tlabel\nGG GG\t1\n",
        }
    )
    files = {"train": ["train.tsv", "train_10.tsv"], "dev": None, "test": ["../test.tsv"]}
    task = read_task(make_task(name="family/10", files=files), data)
    assert (rows(task.train), task.dev, rows(task.test)) == ([("ACG", 0)], None, [("GGG", 1)])
    assert task.test.source.endswith("data/family/test.tsv")


def test_blank_separated_kmers_of_any_k():
    assert join_kmers("ACGTAC CGTACG", "here") == "ACGTACG"
    assert join_kmers("A C G", "here") == "ACG"
    assert join_kmers("ACGTACG", "here") == "ACGTACG"


def test_a_task_may_use_a_part_of_its_training_rows_class_by_class(make_task, write):
    words = ["".join(word) for word in islice(product("ACGT", repeat=4), 200)]
    lines = ["sequence,label", *(f"{word},{int(i < 50)}" for i, word in enumerate(words))]
    one = "sequence,label\nACGTA,0\n"
    data = write({"toy/train.csv": "\n".join(lines), "toy/dev.csv": one, "toy/test.csv": one})
    task = read_task(make_task(train_rows=40), data)
    assert task.train.class_counts(2) == [30, 10]
    assert task.train.sequences == [word for word in words if word in set(task.train.sequences)]
    assert task.train.source.endswith("train.csv (about 40 rows)")
    assert task.resplit is False
    assert (len(task.dev), len(task.test)) == (1, 1)
    assert read_task(make_task(train_rows=40), data).train.sequences == task.train.sequences
    assert len(read_task(make_task(train_rows=200), data).train) == 200


class TestResplit:
    """A task without a train split."""

    @pytest.fixture
    def data(self, write):
        words = islice(map("".join, product("ACGT", repeat=4)), 200)
        dev = [f"{word},{int(i < 50)}" for i, word in enumerate(words)]
        return write(
            {
                "toy/dev.csv": "sequence,label\n" + "\n".join(dev),
                "toy/test.csv": "sequence,label\nACGTA,0\n",
            }
        )

    def test_the_dev_split_is_divided_class_by_class_and_the_test_split_stays(self, make_task, data):
        task = read_task(make_task(), data, resplit=True)
        assert task.resplit is True
        assert task.train.class_counts(2) == [120, 40]
        assert task.dev.class_counts(2) == [30, 10]
        assert len(set(task.train.sequences) | set(task.dev.sequences)) == 200
        assert rows(task.test) == [("ACGTA", 0)]
        assert task.train.source.endswith("dev.csv (resplit)")

    def test_the_seed_decides_and_nothing_else(self, make_task, data):
        first, again = (read_task(make_task(), data, resplit=True) for _ in range(2))
        assert first.train.sequences == again.train.sequences
        other = read_task(make_task(), data, resplit=True, seed=1)
        assert other.train.sequences != first.train.sequences
        path = data / "toy" / "dev.csv"
        header, *lines = path.read_text().splitlines()
        path.write_text("\n".join([header, *reversed(lines)]))
        backwards = read_task(make_task(), data, resplit=True)
        assert backwards.train.sequences == first.train.sequences[::-1]

    def test_it_changes_nothing_where_there_is_a_train_split(self, make_task, write, toy_files):
        data = read_task(make_task(), write(toy_files), resplit=True)
        assert data.resplit is False
        assert len(data.train) == 3

    def test_there_must_be_something_to_divide(self, make_task, write, toy_files):
        del toy_files["toy/train.csv"]
        with pytest.raises(UserError, match="1 rows are too few to divide"):
            read_task(make_task(), write(toy_files), resplit=True)
        with pytest.raises(UserError, match="no train split"):
            read_task(make_task(files={"dev": None}), write(toy_files), resplit=True)


class TestDatasets:
    """Hugging Face datasets."""

    TRAIN = {"sequence": ["ACGT", "ccgt"], "label": [0, 1]}

    def save(self, folder, train=None, dev="validation"):
        splits = {"train": train or self.TRAIN, dev: self.TRAIN, "test": self.TRAIN}
        datasets.DatasetDict({name: datasets.Dataset.from_dict(split) for name, split in splits.items()}).save_to_disk(
            str(folder)
        )

    @pytest.mark.parametrize("dev", ["dev", "validation"])
    @pytest.mark.parametrize("folder", [None, "other", "."])
    def test_a_saved_dataset(self, make_task, tmp_path, folder, dev):
        self.save(tmp_path / (folder or "toy"), dev=dev)
        data = read_task(make_task(folder=folder), tmp_path)
        assert rows(data.train) == rows(data.dev) == rows(data.test) == [("ACGT", 0), ("CCGT", 1)]

    @pytest.mark.parametrize(
        ("train", "message"),
        [
            ({"sequence": ["ACGT", "ACGT"], "label": [0, 2]}, "split train, row 1: the label is 2"),
            (
                {"sequence": ["ACGT", None], "label": [0, 1]},
                "split train, row 1: there is nothing in the column `sequence`",
            ),
            ({"sequence": ["AC T"], "label": [0]}, "split train, row 0: words 1 and 2"),
            (
                {"text": ["ACGT"], "label": [0]},
                "split train: there is no column `sequence`; the columns are: text, label",
            ),
        ],
    )
    def test_what_is_wrong_is_said_with_the_row(self, make_task, tmp_path, train, message):
        self.save(tmp_path / "toy", train)
        with pytest.raises(UserError, match=message):
            read_task(make_task(), tmp_path)

    def test_a_name_on_the_hub_is_asked_for_the_tasks_configuration(self, make_task, monkeypatch):
        asked = []

        def load_dataset(name, configuration):
            asked.append((name, configuration))
            return {name: datasets.Dataset.from_dict(self.TRAIN) for name in ("train", "dev", "test")}

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        data = read_task(make_task(configuration="emp_H3"), "someone/GUE")
        assert asked == [("someone/GUE", "emp_H3")]
        assert rows(data.test) == [("ACGT", 0), ("CCGT", 1)]

    def test_a_name_that_cannot_be_loaded(self, make_task, monkeypatch):
        def load_dataset(name, configuration):
            raise FileNotFoundError("offline")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        with pytest.raises(UserError, match=r"someone/GUE \(default\): not a Hugging Face dataset .* \(offline\)"):
            read_task(make_task(configuration="default"), "someone/GUE")

    def test_on_the_hub_no_two_tasks_get_the_same_data_unasked(self, make_task):
        with pytest.raises(UserError, match="task toy does not say which configuration of the dataset it is"):
            read_task(make_task(), "someone/GUE")


def test_a_sequence_that_is_longer_than_the_task_says_is_an_error(make_task, write, toy_files):
    data = write(toy_files | {"toy/test.csv": "sequence,label\nACGC,0\nACGTA,1\n"})
    assert read_task(make_task(length=5), data).test.sequences[1] == "ACGTA"
    with pytest.raises(UserError, match=r"test\.csv, line 3: 5 nucleotides, but the task's length is 4"):
        read_task(make_task(length=4), data)
