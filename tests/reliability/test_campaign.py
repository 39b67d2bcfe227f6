from tests.reliability import campaign


def test_numbers_depend_on_the_name_and_the_seed_alone():
    first = [campaign.numbers("a").random() for _ in range(2)]
    assert first[0] == first[1]
    assert campaign.numbers("b").random() != first[0]


def test_an_amount_is_never_nothing(monkeypatch):
    monkeypatch.setattr(campaign, "TIMES", 0.001)
    assert campaign.amount(10) == 1
    assert campaign.amount(5000) == 5
