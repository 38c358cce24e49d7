"""Users and groups, in the look of the other pages."""

from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.http import Http404, HttpRequest
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

admin.site.unregister([User, Group])


class WithBoxes(ModelAdmin):  # type: ignore[misc]
    """Groups and permissions have a box each: Django's pairs of lists are not for everybody."""

    filter_horizontal = ()

    def formfield_for_manytomany(self, db_field: Any, request: Any, **kwargs: Any) -> Any:
        """The field, with its boxes."""
        boxes = UnfoldAdminCheckboxSelectMultipleWidget()
        return super().formfield_for_manytomany(db_field, request, **{**kwargs, "widget": boxes})

    def response_action(self, request: HttpRequest, queryset: Any) -> Any:
        """What Django's own action answers; to rows that cannot be there, 404."""
        try:
            return super().response_action(request, queryset)
        except (ValueError, OverflowError):
            raise Http404 from None


@admin.register(User)
class UserAdmin(WithBoxes, DjangoUserAdmin):  # type: ignore[misc,type-arg]
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class GroupAdmin(WithBoxes, DjangoGroupAdmin):  # type: ignore[misc]
    pass
