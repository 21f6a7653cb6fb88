"""Planning: which statistics are needed, and from them the widths, the plan and the folded weights."""
