"""Tasks with a value: how they are read, what is refused, and scores that agree with what is computed by hand."""

import math

import datasets
import numpy as np
import pytest
import yaml
from scipy.stats import rankdata
from sklearn.linear_model import Ridge

from cmgems.downstream import ridge as ridges
from cmgems.downstream.data import Split, TaskData, read_task
from cmgems.downstream.integrity import check_integrity
from cmgems.downstream.objectives import ValueRegression, value_regression
from cmgems.downstream.probing import bootstrap
from cmgems.downstream.ridge import PENALTIES, fit_forest, fit_ridge
from cmgems.downstream.scores import Estimates, score
from cmgems.downstream.tasks import FOLDS, Task, load_suite
from cmgems.downstream.tfidf import tfidf, words
from cmgems.errors import UserError
from tests.conftest import RECIPE

FILES = {
    "toy/train.csv": "sequence,value\nACGT,0.5\nCCGU,-1e2\nGGGT,7\n",
    "toy/dev.csv": "sequence,value\nACGA,0\nACGC,1\n",
    "toy/test.csv": "sequence,value\nACGC,.25\nTTTT,3.\n",
}
TABLE = (
    "name,cds,level,part\na,ACGT,1,train\nb,CCGT,2,train\nc,GGGT,4,val\nd,ACGA,3,dev\ne,TTTT,0,test\nf,GTTT,5,test\n"
)
COLUMNS = {"file": "all.csv", "sequence": "cds", "target": "level", "split": "part"}
TASK = {"name": "toy", "species": "toy", "kind": "toy", "value": "level", "length": 100, "recipe": RECIPE}


def value_task(**settings):
    """A task with a value; any setting can be given."""
    return Task.model_validate(TASK | settings)


def rows(split):
    return list(zip(split.sequences, split.labels.tolist(), strict=True))


class TestReading:
    """Values in files, tables and datasets."""

    def test_values_are_read_as_they_are_and_u_is_t(self, write):
        data = read_task(value_task(), write(FILES))
        assert rows(data.train) == [("ACGT", 0.5), ("CCGT", -100.0), ("GGGT", 7.0)]
        assert rows(data.test) == [("ACGC", 0.25), ("TTTT", 3.0)]
        assert data.train.labels.dtype == np.float64
        assert data.train.has_values

    def test_a_scale_is_made_of_them(self, write):
        data = read_task(value_task(scale="log1p"), write(FILES | {"toy/train.csv": "sequence,value\nA,0\nC,9\n"}))
        assert data.train.labels.tolist() == [0.0, math.log(10)]

    @pytest.mark.parametrize(
        ("cell", "message"),
        [
            ("", "the value is ''; it must be a finite number"),
            ("nan", "the value is 'nan'; it must be a finite number"),
            ("inf", "the value is 'inf'"),
            ("-Infinity", "the value is '-Infinity'"),
            ("high", "the value is 'high'"),
            ("1_000", "the value is '1_000'"),
            ('"1,5"', "the value is '1,5'"),
            ("0x1p3", "the value is '0x1p3'"),
            ("\u0661", r"the value is '\\u0661'"),
            ("1e999", r"the value is 1e999; it must be within ±1e\+100"),
            ("-1e101", "the value is -1e101; it must be within"),
        ],
    )
    def test_what_is_no_number_is_said_with_the_line(self, write, cell, message):
        data = write(FILES | {"toy/dev.csv": f"sequence,value\nACGT,1\nACGA,{cell}\n"})
        with pytest.raises(UserError, match=rf"data/toy/dev\.csv, line 3: {message}"):
            read_task(value_task(), data)

    def test_a_logarithm_takes_nothing_below_0(self, write):
        with pytest.raises(
            UserError, match=r"train\.csv, line 3: the value is -1e2; the scale log1p takes none below 0"
        ):
            read_task(value_task(scale="log1p"), write(FILES))

    def test_labels_are_no_values(self, write, toy_files):
        with pytest.raises(UserError, match="line 1: there is no column `value`; the columns are: sequence, label"):
            read_task(value_task(), write(toy_files))

    @pytest.mark.parametrize("split", ["train", "dev", "test"])
    def test_a_split_of_equal_values_is_refused(self, write, split):
        data = write(FILES | {f"toy/{split}.csv": "sequence,value\nACGT,2\nACGA,2.0\n"})
        with pytest.raises(UserError, match=rf"toy/{split}\.csv: all 2 rows have the same value"):
            read_task(value_task(), data)

    def test_a_dataset(self, tmp_path):
        split = datasets.Dataset.from_dict({"sequence": ["ACGT", "CCGT"], "value": [1.5, 2.0]})
        datasets.DatasetDict(train=split, validation=split, test=split).save_to_disk(str(tmp_path / "toy"))
        assert rows(read_task(value_task(), tmp_path).dev) == [("ACGT", 1.5), ("CCGT", 2.0)]
        broken = datasets.Dataset.from_dict({"sequence": ["ACGT", "CCGT"], "value": [1.5, float("nan")]})
        datasets.DatasetDict(train=broken, validation=split, test=split).save_to_disk(str(tmp_path / "b" / "toy"))
        with pytest.raises(UserError, match="split train, row 1: the value is 'nan'"):
            read_task(value_task(), tmp_path / "b")

    def test_a_resplit_takes_its_share_of_all_rows_and_the_seed_decides(self, write):
        sequences = ["".join("ACGT"[i // 4**n % 4] for n in range(4)) for i in range(100)]
        dev = "sequence,value\n" + "".join(f"{s},{i}\n" for i, s in enumerate(sequences))
        data = write({"toy/dev.csv": dev, "toy/test.csv": FILES["toy/test.csv"]})
        with pytest.raises(UserError, match="--resplit divides its dev split"):
            read_task(value_task(), data)
        found, other = (read_task(value_task(), data, resplit=True, seed=seed) for seed in (42, 1))
        assert (len(found.train), len(found.dev), found.resplit) == (80, 20, True)
        assert sorted(found.train.labels.tolist() + found.dev.labels.tolist()) == list(range(100))
        assert found.train.sequences != other.train.sequences

    def test_a_part_of_the_training_rows(self, write):
        train = "sequence,value\n" + "".join(f"{'ACGT'[i % 4] * (i + 1)},{i}\n" for i in range(40))
        data = read_task(value_task(train_rows=10), write(FILES | {"toy/train.csv": train}))
        assert len(data.train) == 10

    def test_sequences_with_several_values_are_counted(self, write):
        train = "sequence,value\nACGA,1\nACGA,1\nCCGT,2\nCCGT,3\n"
        found = check_integrity(read_task(value_task(), write(FILES | {"toy/train.csv": train})))
        assert (found.duplicates[0].rows, found.duplicates[0].conflicting) == (2, 1)
        assert (found.overlaps[0].sequences, found.overlaps[0].conflicting) == (1, 1)


class TestTables:
    """One file with the rows of all splits."""

    def test_a_column_says_which_split_a_row_is_in(self, write):
        data = read_task(value_task(table=COLUMNS), write({"toy/all.csv": TABLE}))
        assert rows(data.train) == [("ACGT", 1.0), ("CCGT", 2.0)]
        assert rows(data.dev) == [("GGGT", 4.0), ("ACGA", 3.0)]
        assert rows(data.test) == [("TTTT", 0.0), ("GTTT", 5.0)]
        assert data.test.source.endswith("toy/all.csv, split test")

    def test_classes_can_be_in_a_table_too(self, make_task, write):
        text = "sequence,label,part\nACGT,0,train\nCCGT,1,train\nGGGT,1,val\nTTTT,0,test\n"
        data = read_task(make_task(table={"file": "all.csv", "split": "part"}), write({"toy/all.csv": text}))
        assert data.train.class_counts(2) == [1, 1]
        assert data.train.labels.dtype == np.int64

    def test_another_split_is_said_with_the_line(self, write):
        data = write({"toy/all.csv": TABLE.replace("5,test", "5,holdout")})
        with pytest.raises(UserError, match=r"all\.csv, line 7: the split is 'holdout'; it must be one of train, dev,"):
            read_task(value_task(table=COLUMNS), data)

    def test_a_bad_value_is_said_with_the_line_of_the_table(self, write):
        with pytest.raises(UserError, match=r"all\.csv, line 5: the value is 'x'"):
            read_task(value_task(table=COLUMNS), write({"toy/all.csv": TABLE.replace("ACGA,3", "ACGA,x")}))

    @pytest.mark.parametrize("name", ["sequence", "target", "split"])
    def test_a_column_that_is_absent(self, write, name):
        with pytest.raises(UserError, match=r"all\.csv, line 1: there is no column `other`"):
            read_task(value_task(table=COLUMNS | {name: "other"}), write({"toy/all.csv": TABLE}))

    def test_a_table_or_a_split_that_is_absent(self, write):
        with pytest.raises(UserError, match=r"toy/all\.csv: there is no such file, where task toy has the table"):
            read_task(value_task(table=COLUMNS), write({"toy/other.csv": TABLE}))
        without = "\n".join(line for line in TABLE.splitlines() if not line.endswith("test"))
        with pytest.raises(UserError, match=r"task toy has no test split here \(rows of the column `part`\)"):
            read_task(value_task(table=COLUMNS), write({"toy/all.csv": without}))

    def test_a_table_without_training_rows_can_be_resplit(self, write):
        text = "cds,level,part\n" + "".join(f"{'A' * (i + 1)},{i},val\n" for i in range(10))
        data = write({"toy/all.csv": text + "CC,1,test\nGG,2,test\n"})
        with pytest.raises(UserError, match="has no train split here"):
            read_task(value_task(table=COLUMNS), data)
        found = read_task(value_task(table=COLUMNS), data, resplit=True)
        assert (len(found.train), len(found.dev), len(found.test), found.resplit) == (8, 2, 2, True)

    def test_each_row_is_tested_in_one_fold_and_validated_in_the_one_before(self, write):
        draw = np.random.default_rng(0)
        sequences = ["".join(draw.choice(list("ACGT"), 50)) for _ in range(50)]
        text = "sequence,value\n" + "".join(f"{s},{i}\n" for i, s in enumerate(sequences))
        data = write({"toy/all.csv": text})
        tasks = [value_task(table={"file": "all.csv", "fold": fold}) for fold in range(1, FOLDS + 1)]
        of_folds = [read_task(task, data) for task in tasks]
        assert sorted(v for fold in of_folds for v in fold.test.labels.tolist()) == list(range(50))
        for fold, following in zip(of_folds, of_folds[1:] + of_folds[:1], strict=True):
            assert fold.dev.sequences == following.test.sequences
            assert sorted(v for s in fold.splits.values() for v in s.labels.tolist()) == list(range(50))
            assert (len(fold.train), len(fold.dev), len(fold.test)) == (30, 10, 10)

    def test_too_few_clusters_for_folds(self, write):
        text = "sequence,value\nACGT,1\nACGA,2\n"
        with pytest.raises(UserError, match="too few sequences for folds"):
            read_task(value_task(table={"file": "all.csv", "fold": 5}), write({"toy/all.csv": text}))


class TestTasks:
    """What a suite may say."""

    def load(self, tmp_path, metric="spearman", **settings):
        suite = {"name": "mine", "source": "mine", "metric": metric, "tasks": [TASK | settings]}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(suite))
        return load_suite(str(tmp_path / "mine.yaml"))

    def test_a_value_takes_the_place_of_classes(self, tmp_path):
        suite = self.load(tmp_path)
        assert suite.is_of_values
        assert (suite.tasks[0].value, suite.tasks[0].classes, suite.tasks[0].outputs) == ("level", [], 1)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"classes": ["a", "b"]}, "toy: give either classes or a value, and not both"),
            ({"value": None}, "toy: give either classes or a value"),
            ({"shots": 10}, "toy: shots: they are of each class, and there are none; take train_rows"),
            (
                {"metric": "mcc"},
                "metric: mcc is of tasks with classes, and toy has a value: take spearman, pearson or r2",
            ),
            ({"value": None, "classes": ["a", "b"]}, "metric: spearman is of tasks with a value, and toy has classes"),
            ({"value": None, "classes": ["a", "b"], "scale": "log1p", "metric": "mcc"}, "scale: classes have none"),
            ({"scale": "log10"}, "tasks.0.scale: Input should be 'linear' or 'log1p'"),
            ({"table": {"file": "a.csv"}}, "tasks.0.table: .*give either split or fold, and not both"),
            ({"table": {"file": "a.csv", "fold": 1, "split": "part"}}, "give either split or fold, and not both"),
            ({"table": {"file": "a.csv", "fold": 6}}, "tasks.0.table.fold"),
            (
                {"table": {"file": "a.csv", "fold": 1}, "files": {"dev": None}},
                "a table in folds always has a validation",
            ),
            (
                {"table": {"file": "a.csv", "fold": 1}, "files": {"train": ["b.csv"]}},
                "files: the rows of all splits are",
            ),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path, settings, message):
        with pytest.raises(UserError, match=message):
            self.load(tmp_path, **settings)

    def test_the_suite_that_ships(self):
        suite = load_suite("codon")
        groups = [task.group for task in suite.tasks]
        assert (groups.count(None), groups.count("transcripts"), groups.count("proteins")) == (3, 5, 5)
        for group in ("transcripts", "proteins"):
            folds = [task.table.fold for task in suite.tasks if task.group == group]
            assert folds == [1, 2, 3, 4, 5]

    def test_described_as_before_there_were_values(self):
        [task] = load_suite("demo").tasks
        assert not {"value", "scale", "table"} & task.described().keys()
        assert load_suite("codon").tasks[0].described()["table"]["file"] == "mRFP_Expression.csv"


class TestScores:
    """Metrics of values."""

    values, predicted = np.array([1.0, 2.0, 4.0, 4.0, 9.0]), np.array([2.0, 1.0, 5.0, 3.0, 30.0])

    def test_they_are_what_is_computed_by_hand(self):
        found = score(Estimates(self.values, self.predicted))
        ranks = rankdata(self.values), rankdata(self.predicted)  # of equal values the mean of their ranks
        squares = np.square(self.predicted - self.values).sum()
        spread = np.square(self.values - self.values.mean()).sum()
        assert found == pytest.approx(
            {
                "spearman": np.corrcoef(*ranks)[0, 1],
                "pearson": np.corrcoef(self.values, self.predicted)[0, 1],
                "r2": 1 - squares / spread,
                "rmse": math.sqrt(squares / 5),
            }
        )

    def test_the_order_alone_makes_spearmans(self):
        assert score(Estimates(self.values, np.exp(self.values)))["spearman"] == pytest.approx(1)

    @pytest.mark.filterwarnings("error")
    def test_a_constant_is_correlated_with_nothing(self):
        found = score(Estimates(self.values, np.full(5, 4.0)))
        assert (found["spearman"], found["pearson"], found["r2"]) == (0, 0, 0)


class TestObjective:
    """What a fine-tuning of a value minimises."""

    def test_it_is_standardised_on_the_training_split(self):
        assert value_regression(np.array([1.0, 3.0])) == ValueRegression(mean=2.0, deviation=1.0)

    def test_outputs_are_in_standard_deviations_and_predictions_in_the_unit(self):
        objective = ValueRegression(mean=10.0, deviation=4.0)
        found = objective.predictions(np.array([[0.0], [-1.0]], dtype=np.float32), np.array([10.0, 8.0]))
        assert (found.predicted.tolist(), found.values.tolist()) == ([10.0, 6.0], [10.0, 8.0])
        assert objective.mean_loss(np.array([[0.0], [-1.0]]), np.array([10.0, 8.0])) == 0.125


def made(train=60, dev=40, test=30, seed=0):
    """Features of which one says much about the value, and the task's data."""
    draw = np.random.default_rng(seed)
    features, splits = {}, []
    for name, number in (("train", train), ("dev", dev), ("test", test)):
        features[name] = draw.normal(size=(number, 12)) if number else None
        values = features[name][:, 0] * 5 + 100 + draw.normal(size=number) if number else None
        splits.append(Split(name, ["ACGT"] * number, values, [0] * number) if number else None)
    return features, TaskData(value_task(), *splits)


class TestRidge:
    """Ridge regression."""

    def test_it_is_scikit_learns_on_a_bootstrap_with_the_penalty_that_dev_chooses(self):
        features, data = made()
        found = fit_ridge(features, data, "spearman", 42, resampled=True)
        chosen = bootstrap(np.zeros(60, dtype=np.int64), 42)
        train, scores = features["train"][chosen], {}
        mean, deviation = train.mean(axis=0), train.std(axis=0)
        for alpha in PENALTIES:
            model = Ridge(alpha=alpha).fit((train - mean) / deviation, data.train.labels[chosen])
            of_dev = model.predict((features["dev"] - mean) / deviation)
            scores[alpha] = score(Estimates(data.dev.labels, of_dev))["spearman"]
            if alpha == found.choice.value:
                expected = model.predict((features["test"] - mean) / deviation)
        assert found.choice.scores == pytest.approx(scores)
        assert found.choice.value == max(scores, key=scores.get)
        assert found.test.predicted == pytest.approx(expected)
        assert (found.choice.setting, found.choice.by) == ("alpha", "dev")
        assert score(found.test)["spearman"] > 0.9

    def test_the_test_split_has_no_part_in_the_choice(self):
        features, data = made()
        other = TaskData(
            data.task, data.train, data.dev, Split("test", data.test.sequences, -data.test.labels, [0] * 30)
        )
        first, second = (fit_ridge(features, d, "r2", 1, resampled=False) for d in (data, other))
        assert first.choice == second.choice
        assert first.test.predicted.tolist() == second.test.predicted.tolist()

    def test_without_a_dev_split_a_cross_validation_of_the_training_rows_chooses(self):
        features, data = made(dev=0)
        found = fit_ridge(features, data, "spearman", 42, resampled=True)
        assert (found.dev, found.choice.by) == (None, "5-fold cross-validation on train")
        assert found.choice.scores[found.choice.value] == max(found.choice.scores.values()) > 0.9
        features, data = made(train=9, dev=0)
        found = fit_ridge(features, data, "spearman", 42, resampled=False)
        assert (found.choice.value, found.choice.scores) == (1.0, {})

    def test_seeds_are_bootstraps(self):
        features, data = made()
        first, same, other = (fit_ridge(features, data, "r2", seed, True).test.predicted.tolist() for seed in (1, 1, 2))
        assert first == same != other
        assert fit_ridge(features, data, "r2", 1, False).test.predicted.tolist() != first

    def test_a_bootstrap_of_a_single_value_is_an_error(self):
        features, data = made(train=2)
        seed = next(seed for seed in range(20) if len(set(bootstrap(np.zeros(2), seed).tolist())) == 1)
        with pytest.raises(UserError, match="train: a bootstrap of its 2 rows has a single value"):
            fit_ridge(features, data, "r2", seed, True)

    def test_a_forest_says_something_too_and_its_seed_draws_it(self, monkeypatch):
        monkeypatch.setattr(ridges, "TREES", 20)
        features, data = made()
        first, same, other = (fit_forest(features, data, seed, False) for seed in (1, 1, 2))
        assert first.test.predicted.tolist() == same.test.predicted.tolist() != other.test.predicted.tolist()
        assert score(first.test)["spearman"] > 0.6
        assert first.choice is None
        assert score(first.dev)["spearman"] > 0.6


class TestTfidf:
    """Features of the baselines."""

    def test_words_are_overlapping_k_mers_or_codons_in_frame(self):
        assert words("ATGAAC", 3, 1) == ["ATG", "TGA", "GAA", "AAC"]
        assert words("ATGAACG", 3, 3) == ["ATG", "AAC"]
        assert words("ATGANC", 3, 3) == ["ATG"]

    def test_words_that_all_have_weigh_less_and_rows_have_length_1(self):
        sequences = ["ATGAAA", "ATGCCC", "ATGCCCAAA"]
        split = Split("train", sequences, np.arange(3.0), [0] * 3)
        test = Split("test", ["ATGAAAAAA", "GGGTTT"], np.arange(2.0), [0] * 2)
        found = tfidf(TaskData(value_task(), split, None, test), 3, codons=True)
        weight = {"AAA": math.log(4 / 3) + 1, "ATG": 1.0, "CCC": math.log(4 / 3) + 1}  # in this order
        expected = np.array([2 * weight["AAA"], weight["ATG"], 0])
        assert found["test"][0] == pytest.approx(expected / np.linalg.norm(expected))
        assert found["test"][1].tolist() == [0, 0, 0]
        assert found["train"].shape == (3, 3)

    def test_nothing_to_count_is_an_error(self):
        split = Split("train.csv", ["NNNN", "AC"], np.arange(2.0), [0] * 2)
        with pytest.raises(UserError, match=r"train\.csv: no sequence has 3 nucleotides without an N"):
            tfidf(TaskData(value_task(), split, None, split), 3)
