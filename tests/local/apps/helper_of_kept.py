TEXT = "from the helper"
