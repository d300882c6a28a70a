from rrlsam.errors import SHOWN, listed


def test_of_many_names_ten_are_told_and_the_others_are_counted():
    names = [str(i) for i in range(SHOWN + 3)]
    assert listed(names) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more"
    assert listed(names[:SHOWN]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert listed(names[:2], "; ") == "0; 1"
    assert listed([]) == ""
