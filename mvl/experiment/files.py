"""The files of a run folder, which is named by its experiment's fingerprint."""

CONFIG = "config.json"  #: The configuration, its fingerprint and the version of the protocol.
NAME = "name"  #: What a person calls the run, where somebody named it; no part of the fingerprint.
TASK = "task.json"  #: The task's facts, so that a run predicts without its data set.
SPLIT = "split.json"  #: Names of the training, validation and test cases.
IDENTITY = "identity.json"  #: What else the folder's name is made of; see `identity.py`.
SKIPPED = "skipped.csv"  #: Cases that were left out because of a fault, if there are any.
LOST = "lost.csv"  #: Structures that the model's grid does not show, if there are any.
BLOCK = "block.json"  #: The language block by reference: source, revision, layer, SHA-256.
ENVIRONMENT = "environment.json"  #: Versions, device, number format, threads, commit.
CURVES = "curves.csv"  #: One row per epoch.
WEIGHTS = "model.safetensors"  #: The trained weights of the best epoch.
STATE = "state.safetensors"  #: What the next epoch depends on; removed when training ends.
DOMAIN = "domain.json"  #: What the training images were like, for `mvl predict`.
TRAINED = "trained.json"  #: Written when training ends; such a run is never trained again.
CASES = "cases.csv"  #: One row per test case and structure: every metric, in native space.
HEALTHY = "healthy.csv"  #: What was found in healthy test cases, in ml, if there are any.
DONE = "done.json"  #: Written last; such a run is never evaluated again.
FAILED = "failed.json"  #: Why training stopped; removed by the next attempt.
