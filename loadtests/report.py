def page(folder):
    return ""


def comparison(folder):
    return ""
